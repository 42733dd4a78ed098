// A load generator for CoAP over DTLS 1.2: thousands of devices from one process, one thread, epoll,
// one connected UDP socket for each. It saturates a server from one core and prints one JSON line.
//
//   gcc -O2 -w -DUSE_OPENSSL  dtlsload.c -o dtlsload      -lssl -lcrypto                        fastest
//   gcc -O2 -w -DUSE_MBEDTLS  dtlsload.c -o dtlsload-mbed -lmbedtls -lmbedx509 -lmbedcrypto     with Connection ID (RFC 9146)
//
//   --mode hs    full handshakes, -n at once             --src-spread N  from N source addresses below 127.0.0.0/8
//   --mode req   confirmable requests, one under way for each of -n devices
//   --mode idle  -n associations, one request each, then silence for --hold seconds: memory for each
//   --pid PID    the server, whose CPU time and memory are read from /proc
//   --id-format F --id-count N   PSK identities by number; --psk TEXT, --psk-hex HEX or --psk-file F is the key of all
//   --auth x509 --cert F --key F --ca F
//   -d seconds   measured, after -w seconds of warming up; -b octets of payload; --path P; --non
//
// It talks to loopback only.
#define _GNU_SOURCE
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <stdint.h>
#include <errno.h>
#include <unistd.h>
#include <fcntl.h>
#include <time.h>
#include <getopt.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <sys/resource.h>
#include <netinet/in.h>
#include <arpa/inet.h>
#include <dirent.h>
#ifdef USE_OPENSSL
#include <openssl/ssl.h>
#include <openssl/err.h>
#include <openssl/bio.h>
#endif
#ifdef USE_MBEDTLS
#include <mbedtls/ssl.h>
#include <mbedtls/entropy.h>
#include <mbedtls/ctr_drbg.h>
#include <mbedtls/x509_crt.h>
#include <mbedtls/pk.h>
#include <mbedtls/net_sockets.h>
#include <mbedtls/ssl_ciphersuites.h>
#include <psa/crypto.h>
#endif
static uint64_t now_ns(void){struct timespec t;clock_gettime(CLOCK_MONOTONIC,&t);return t.tv_sec*1000000000ull+t.tv_nsec;}
/* ---------- options ---------- */
static const char*o_host="127.0.0.1",*o_mode="req",*o_proto="dtls",*o_idfmt="load.%06d",*o_psk="sixteen octets!!",*o_auth="psk",*o_cipher=NULL,*o_cert,*o_key,*o_ca,*o_path="benchmark",*o_query=NULL,*o_method="post",*o_name="";
static int o_port=5684,o_sessions=1,o_idstart=1,o_idcount=1000000,o_payload=100,o_cid=-1,o_hsreq=0,o_pid=0,o_rebind=0,o_hspar=32,o_non=0,o_verbose=0,o_pskhex=0,o_spread=0;
static double o_dur=5,o_warm=1,o_hold=3,o_rate=0;
static uint8_t pskbuf[256];static int psklen;
/* ---------- session ---------- */
enum{S_NEW,S_HS,S_READY,S_WAIT,S_DEAD};
typedef struct sess{int fd,idx,state,retr;uint16_t mid;uint32_t tok;uint64_t t0,tdead,hs0;int hsdl_on;uint64_t hsdl_int,hsdl_fin;unsigned nreq;
 uint8_t req[1400];int reqlen;
#ifdef USE_OPENSSL
 SSL*ssl;
#endif
#ifdef USE_MBEDTLS
 mbedtls_ssl_context ssl;mbedtls_ssl_config conf;int inited;
#endif
}sess;
static sess*S;static int ep;static struct sockaddr_in peer;
static uint64_t n_ok,n_err,n_retr,n_hs,n_hsfail,n_timeout,n_rebind,n_cidneg;
static int measuring;
/* latency: log histogram, 1us..~67s, 16 sub-buckets */
static uint64_t hist[1024];
static void lat(uint64_t ns){uint64_t us=ns/1000;if(us<1)us=1;int e=63-__builtin_clzll(us);int sub=e>=4?(us>>(e-4))&15:(us<<(4-e))&15;hist[e*16+sub]++;}
static double pct(double p){uint64_t t=0,c=0;for(int i=0;i<1024;i++)t+=hist[i];if(!t)return 0;for(int i=0;i<1024;i++){c+=hist[i];if(c>=p*t){int e=i/16,s=i%16;return (double)(1ull<<e)*(1+s/16.0)/1000.0;}}return 0;}
static int usetls(void){return !strcmp(o_proto,"dtls");}
static void die(const char*m){fprintf(stderr,"fatal: %s (%s)\n",m,strerror(errno));exit(2);}
/* A key that nobody is to see in the list of processes. */
static const char*file_text(const char*name){static char t[257];FILE*f=fopen(name,"r");if(!f)die(name);size_t n=fread(t,1,sizeof t-1,f);fclose(f);while(n&&(t[n-1]=='\n'||t[n-1]=='\r'))n--;t[n]=0;return t;}
/* ---------- TLS backends ---------- */
#ifdef USE_OPENSSL
static SSL_CTX*ctx;static BIO_METHOD*bm;static int exidx;
static int bw(BIO*b,const char*d,int n){int fd=(int)(intptr_t)BIO_get_data(b);BIO_clear_retry_flags(b);int r=send(fd,d,n,0);if(r<0&&(errno==EAGAIN||errno==ENOBUFS)){BIO_set_retry_write(b);}return r;}
static int br(BIO*b,char*d,int n){int fd=(int)(intptr_t)BIO_get_data(b);BIO_clear_retry_flags(b);int r=recv(fd,d,n,0);if(r<0&&errno==EAGAIN)BIO_set_retry_read(b);return r;}
static long bc(BIO*b,int c,long n,void*p){switch(c){case BIO_CTRL_FLUSH:return 1;case BIO_CTRL_DGRAM_QUERY_MTU:case BIO_CTRL_DGRAM_GET_FALLBACK_MTU:return 1300;case BIO_CTRL_DGRAM_GET_MTU_OVERHEAD:return 28;default:return 0;}}
static unsigned pskcb(SSL*s,const char*h,char*id,unsigned ml,unsigned char*k,unsigned mk){sess*q=SSL_get_ex_data(s,exidx);snprintf(id,ml,o_idfmt,o_idstart+q->idx%o_idcount);memcpy(k,pskbuf,psklen);return psklen;}
static void tls_global(void){ctx=SSL_CTX_new(DTLS_client_method());SSL_CTX_set_max_proto_version(ctx,DTLS1_2_VERSION);SSL_CTX_set_min_proto_version(ctx,DTLS1_2_VERSION);
 const char*c=o_cipher;if(!c)c=!strcmp(o_auth,"x509")?"ECDHE-ECDSA-AES128-CCM8:ECDHE-ECDSA-AES128-GCM-SHA256":!strcmp(o_auth,"ecdhe_psk")?"ECDHE-PSK-AES128-CBC-SHA256":"PSK-AES128-CCM8";
 char cc[512];snprintf(cc,512,"%s:@SECLEVEL=0",c);if(!SSL_CTX_set_cipher_list(ctx,cc))die("cipher list");
 SSL_CTX_set_options(ctx,SSL_OP_NO_TICKET|SSL_OP_NO_QUERY_MTU|SSL_OP_NO_COMPRESSION);SSL_CTX_set_session_cache_mode(ctx,SSL_SESS_CACHE_OFF);SSL_CTX_set_mode(ctx,SSL_MODE_RELEASE_BUFFERS);
 SSL_CTX_set_quiet_shutdown(ctx,0);SSL_CTX_set1_groups_list(ctx,"P-256");
 exidx=SSL_get_ex_new_index(0,0,0,0,0);
 if(strcmp(o_auth,"x509"))SSL_CTX_set_psk_client_callback(ctx,pskcb);
 else{if(o_cert&&SSL_CTX_use_certificate_chain_file(ctx,o_cert)!=1)die("cert");if(o_key&&SSL_CTX_use_PrivateKey_file(ctx,o_key,SSL_FILETYPE_PEM)!=1)die("key");
  if(o_ca){if(!SSL_CTX_load_verify_locations(ctx,o_ca,0))die("ca");SSL_CTX_set_verify(ctx,SSL_VERIFY_PEER,0);}}
 bm=BIO_meth_new(BIO_get_new_index()|BIO_TYPE_SOURCE_SINK,"u");BIO_meth_set_write(bm,bw);BIO_meth_set_read(bm,br);BIO_meth_set_ctrl(bm,bc);}
static void tls_open(sess*q){q->ssl=SSL_new(ctx);SSL_set_ex_data(q->ssl,exidx,q);BIO*b=BIO_new(bm);BIO_set_data(b,(void*)(intptr_t)q->fd);BIO_set_init(b,1);SSL_set_bio(q->ssl,b,b);SSL_set_mtu(q->ssl,1300);SSL_set_connect_state(q->ssl);}
static int tls_hs(sess*q){ERR_clear_error();int r=SSL_do_handshake(q->ssl);if(r==1)return 1;int e=SSL_get_error(q->ssl,r);if(e==SSL_ERROR_WANT_READ||e==SSL_ERROR_WANT_WRITE)return 0;if(o_verbose)ERR_print_errors_fp(stderr);return -1;}
static void tls_timer(sess*q){DTLSv1_handle_timeout(q->ssl);}
static int tls_write(sess*q,uint8_t*b,int n){return SSL_write(q->ssl,b,n);}
static int tls_read(sess*q,uint8_t*b,int n){int r=SSL_read(q->ssl,b,n);if(r>0)return r;int e=SSL_get_error(q->ssl,r);if(e==SSL_ERROR_WANT_READ)return 0;return -1;}
static void tls_close(sess*q,int notify){if(q->ssl){if(notify)SSL_shutdown(q->ssl);SSL_free(q->ssl);q->ssl=0;}}
static const char*tls_suite(sess*q){return SSL_get_cipher_name(q->ssl);}
#endif
#ifdef USE_MBEDTLS
static mbedtls_entropy_context ent;static mbedtls_ctr_drbg_context drbg;static mbedtls_x509_crt crt,ca;static mbedtls_pk_context pk;static int suites[8];
static int bw(void*c,const unsigned char*d,size_t n){sess*q=c;int r=send(q->fd,d,n,0);if(r<0&&(errno==EAGAIN||errno==ENOBUFS))return MBEDTLS_ERR_SSL_WANT_WRITE;return r<0?MBEDTLS_ERR_NET_SEND_FAILED:r;}
static int br(void*c,unsigned char*d,size_t n){sess*q=c;int r=recv(q->fd,d,n,0);if(r<0&&errno==EAGAIN)return MBEDTLS_ERR_SSL_WANT_READ;return r<0?MBEDTLS_ERR_NET_RECV_FAILED:r;}
static void ts(void*c,uint32_t i,uint32_t f){sess*q=c;if(!f){q->hsdl_on=0;return;}uint64_t n=now_ns();q->hsdl_on=1;q->hsdl_int=n+i*1000000ull;q->hsdl_fin=n+f*1000000ull;}
static int tg(void*c){sess*q=c;if(!q->hsdl_on)return -1;uint64_t n=now_ns();return n>=q->hsdl_fin?2:n>=q->hsdl_int?1:0;}
static void tls_global(void){psa_crypto_init();mbedtls_entropy_init(&ent);mbedtls_ctr_drbg_init(&drbg);if(mbedtls_ctr_drbg_seed(&drbg,mbedtls_entropy_func,&ent,0,0))die("drbg");
 if(o_cipher){int k=0;char*t=strdup(o_cipher);for(char*p=strtok(t,":");p;p=strtok(0,":")){int id=mbedtls_ssl_get_ciphersuite_id(p);if(!id)die("cipher");suites[k++]=id;}}
 else if(!strcmp(o_auth,"x509")){suites[0]=MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_CCM_8;suites[1]=MBEDTLS_TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256;}
 else if(!strcmp(o_auth,"ecdhe_psk"))suites[0]=MBEDTLS_TLS_ECDHE_PSK_WITH_AES_128_CBC_SHA256;else suites[0]=MBEDTLS_TLS_PSK_WITH_AES_128_CCM_8;
 mbedtls_x509_crt_init(&crt);mbedtls_x509_crt_init(&ca);mbedtls_pk_init(&pk);
 if(o_cert&&mbedtls_x509_crt_parse_file(&crt,o_cert))die("cert");if(o_key&&mbedtls_pk_parse_keyfile(&pk,o_key,0,mbedtls_ctr_drbg_random,&drbg))die("key");if(o_ca&&mbedtls_x509_crt_parse_file(&ca,o_ca))die("ca");}
static void tls_open(sess*q){mbedtls_ssl_init(&q->ssl);mbedtls_ssl_config_init(&q->conf);q->inited=1;
 mbedtls_ssl_config_defaults(&q->conf,MBEDTLS_SSL_IS_CLIENT,MBEDTLS_SSL_TRANSPORT_DATAGRAM,MBEDTLS_SSL_PRESET_DEFAULT);mbedtls_ssl_conf_rng(&q->conf,mbedtls_ctr_drbg_random,&drbg);
 mbedtls_ssl_conf_max_tls_version(&q->conf,MBEDTLS_SSL_VERSION_TLS1_2);mbedtls_ssl_conf_min_tls_version(&q->conf,MBEDTLS_SSL_VERSION_TLS1_2);
 mbedtls_ssl_conf_ciphersuites(&q->conf,suites);mbedtls_ssl_conf_authmode(&q->conf,o_ca?MBEDTLS_SSL_VERIFY_REQUIRED:MBEDTLS_SSL_VERIFY_NONE);mbedtls_ssl_conf_session_tickets(&q->conf,0);
 if(strcmp(o_auth,"x509")){char id[128];int n=snprintf(id,128,o_idfmt,o_idstart+q->idx%o_idcount);mbedtls_ssl_conf_psk(&q->conf,pskbuf,psklen,(unsigned char*)id,n);}
 else{if(o_cert)mbedtls_ssl_conf_own_cert(&q->conf,&crt,&pk);if(o_ca)mbedtls_ssl_conf_ca_chain(&q->conf,&ca,0);}
 if(o_cid>=0)mbedtls_ssl_conf_cid(&q->conf,o_cid,MBEDTLS_SSL_UNEXPECTED_CID_IGNORE);
 if(mbedtls_ssl_setup(&q->ssl,&q->conf))die("ssl_setup");mbedtls_ssl_set_mtu(&q->ssl,1300);mbedtls_ssl_set_bio(&q->ssl,q,bw,br,0);mbedtls_ssl_set_timer_cb(&q->ssl,q,ts,tg);mbedtls_ssl_set_hostname(&q->ssl,0);
 if(o_cid>=0){unsigned char c[32];for(int i=0;i<o_cid;i++)c[i]=(q->idx>>(8*(i&3)))^0x5a;if(mbedtls_ssl_set_cid(&q->ssl,MBEDTLS_SSL_CID_ENABLED,c,o_cid))die("cid");}}
static int tls_hs(sess*q){int r=mbedtls_ssl_handshake(&q->ssl);if(r==0){if(o_cid>=0){int en=0;unsigned char c[32];size_t l=0;mbedtls_ssl_get_peer_cid(&q->ssl,&en,c,&l);if(en)n_cidneg++;}return 1;}if(r==MBEDTLS_ERR_SSL_WANT_READ||r==MBEDTLS_ERR_SSL_WANT_WRITE)return 0;if(o_verbose)fprintf(stderr,"hs %d -0x%x\n",q->idx,-r);return -1;}
static void tls_timer(sess*q){}
static int tls_write(sess*q,uint8_t*b,int n){return mbedtls_ssl_write(&q->ssl,b,n);}
static int tls_read(sess*q,uint8_t*b,int n){int r=mbedtls_ssl_read(&q->ssl,b,n);if(r>0)return r;if(r==MBEDTLS_ERR_SSL_WANT_READ)return 0;return -1;}
static void tls_close(sess*q,int notify){if(q->inited){if(notify)mbedtls_ssl_close_notify(&q->ssl);mbedtls_ssl_free(&q->ssl);mbedtls_ssl_config_free(&q->conf);q->inited=0;}}
static const char*tls_suite(sess*q){return mbedtls_ssl_get_ciphersuite(&q->ssl);}
#endif
/* ---------- CoAP ---------- */
static int opt(uint8_t*p,int delta,const void*v,int n){int k=0;uint8_t*h=p++;*h=0;if(delta<13)*h=delta<<4;else{*h=13<<4;*p++=delta-13;}if(n<13)*h|=n;else{*h|=13;*p++=n-13;}memcpy(p,v,n);k=p-h+n;return k;}
static void build(sess*q){uint8_t*p=q->req;int m=!strcmp(o_method,"get")?1:!strcmp(o_method,"put")?3:2;q->mid++;q->tok+=0x10001;*p++=0x40|(o_non?0x10:0)|4;*p++=m;*p++=q->mid>>8;*p++=q->mid;memcpy(p,&q->tok,4);p+=4;
 int last=0;char t[256];snprintf(t,256,"%s",o_path);for(char*s=strtok(t,"/");s;s=strtok(0,"/")){p+=opt(p,11-last,s,strlen(s));last=11;}
 if(m!=1&&o_payload){uint8_t cf=42;p+=opt(p,12-last,&cf,1);last=12;}
 if(o_query){char u[256];snprintf(u,256,"%s",o_query);for(char*s=strtok(u,"&");s;s=strtok(0,"&")){p+=opt(p,15-last,s,strlen(s));last=15;}}
 if(m!=1&&o_payload){*p++=0xff;memset(p,'x',o_payload);p+=o_payload;}q->reqlen=p-q->req;}
static int xmit(sess*q,uint8_t*b,int n){return usetls()?tls_write(q,b,n):(int)send(q->fd,b,n,0);}
static int rcv(sess*q,uint8_t*b,int n){if(usetls())return tls_read(q,b,n);int r=recv(q->fd,b,n,0);if(r<0)return errno==EAGAIN?0:(errno==ECONNREFUSED?0:-1);return r;}
static void opensock(sess*q){q->fd=socket(AF_INET,SOCK_DGRAM|SOCK_NONBLOCK,0);if(q->fd<0)die("socket");if(o_spread){struct sockaddr_in a={.sin_family=AF_INET};a.sin_addr.s_addr=htonl(0x7f000001+1+q->idx%o_spread);bind(q->fd,(void*)&a,sizeof a);}if(connect(q->fd,(void*)&peer,sizeof peer))die("connect");struct epoll_event e={.events=EPOLLIN,.data.ptr=q};epoll_ctl(ep,EPOLL_CTL_ADD,q->fd,&e);}
static void rebind(sess*q){int old=q->fd;opensock(q);close(old);
#ifdef USE_OPENSSL
 if(q->ssl)BIO_set_data(SSL_get_rbio(q->ssl),(void*)(intptr_t)q->fd);
#endif
 n_rebind++;}
static void sendreq(sess*q){if(o_rebind&&q->nreq&&q->nreq%o_rebind==0)rebind(q);build(q);q->nreq++;q->retr=0;q->t0=now_ns();q->tdead=q->t0+2000000000ull;q->state=S_WAIT;xmit(q,q->req,q->reqlen);}
static void startsess(sess*q){opensock(q);q->hs0=now_ns();q->mid=rand();q->tok=rand();q->nreq=0;q->hsdl_on=0;
 if(!usetls()){q->state=S_READY;return;}tls_open(q);q->state=S_HS;}
static int fatal_close(sess*q,int notify){if(usetls())tls_close(q,notify);close(q->fd);q->fd=-1;q->state=S_DEAD;return 0;}
static int running=1,hsmode,idlemode;static int started,hspending,ready;static int printed;
static void onready(sess*q);
/* A quick server may have answered every flight before the first call returns. */
static void restart(sess*q){q->idx=started++;startsess(q);if(q->state==S_HS&&tls_hs(q)==1)onready(q);}
static void onready(sess*q){if(!printed&&usetls()){printed=1;if(o_verbose)fprintf(stderr,"suite %s\n",tls_suite(q));}
 ready++;
 if(hsmode){ if(measuring){lat(now_ns()-q->hs0);}n_hs++; if(o_hsreq){sendreq(q);return;} fatal_close(q,1);if(running)restart(q);return;}
 q->state=S_READY;}
static void onresp(sess*q,int ok){if(measuring){lat(now_ns()-q->t0);if(ok)n_ok++;else n_err++;}
 if(hsmode){fatal_close(q,1);if(running)restart(q);return;}
 if(running&&!idlemode)sendreq(q);else q->state=S_READY;}
static void onread(sess*q){uint8_t b[4096];
 if(q->state==S_HS){int r=tls_hs(q);if(r==1){hspending--;n_hs+=hsmode?0:1;onready(q);return;}if(r<0){n_hsfail++;hspending--;fatal_close(q,0);if(hsmode&&running){restart(q);hspending++;}else q->state=S_DEAD;}return;}
 for(;;){if(q->state==S_DEAD||q->fd<0)return;int fd0=q->fd;int n=rcv(q,b,sizeof b);if(n==0)return;if(n<0){n_err++;fatal_close(q,0);if(o_verbose)fprintf(stderr,"session %d closed\n",q->idx);return;}
  if(!strcmp(o_proto,"raw")){if(q->state==S_WAIT)onresp(q,1);continue;}
  if(n<4)continue;int type=(b[0]>>4)&3,tkl=b[0]&15,code=b[1];uint16_t mid=b[2]<<8|b[3];
  if(type==2&&code==0)continue; /* empty ack: separate response follows */
  if(type==3){if(q->state==S_WAIT&&mid==q->mid){onresp(q,0);if(hsmode)return;}continue;}
  if(code==0)continue;
  if(type==0){uint8_t a[4]={0x60,0,b[2],b[3]};xmit(q,a,4);}
  if(q->state==S_WAIT&&tkl==4&&!memcmp(b+4,&q->tok,4)){onresp(q,(code>>5)==2);if(hsmode||q->fd!=fd0)return;}
 }}
/* ---------- server sampling ---------- */
static double cpu_of(int pid){char f[64],b[1024];snprintf(f,64,"/proc/%d/stat",pid);FILE*p=fopen(f,"r");if(!p)return 0;size_t n=fread(b,1,1023,p);fclose(p);b[n]=0;char*s=strrchr(b,')');unsigned long u,k;sscanf(s+2,"%*c %*d %*d %*d %*d %*d %*u %*u %*u %*u %*u %lu %lu",&u,&k);return (u+k)/(double)sysconf(_SC_CLK_TCK);}
static long rss_of(int pid){char f[64],l[256];snprintf(f,64,"/proc/%d/status",pid);FILE*p=fopen(f,"r");if(!p)return 0;long r=0;while(fgets(l,256,p))if(sscanf(l,"VmRSS: %ld",&r)==1)break;fclose(p);return r;}
static double selfcpu(void){struct rusage u;getrusage(RUSAGE_SELF,&u);return u.ru_utime.tv_sec+u.ru_stime.tv_sec+(u.ru_utime.tv_usec+u.ru_stime.tv_usec)/1e6;}
static void poll_once(int ms){struct epoll_event ev[256];int n=epoll_wait(ep,ev,256,ms);for(int i=0;i<n;i++)onread(ev[i].data.ptr);
 static uint64_t lastsweep;uint64_t t=now_ns();if(t-lastsweep>50000000ull){lastsweep=t;for(int i=0;i<o_sessions;i++){sess*q=&S[i];
  if(q->state==S_HS){tls_timer(q);
#ifdef USE_MBEDTLS
   if(q->hsdl_on&&t>=q->hsdl_fin){int r=tls_hs(q);if(r<0){n_hsfail++;fatal_close(q,0);hspending--;if(hsmode&&running){restart(q);hspending++;}}}
#endif
   if(q->state==S_HS&&t-q->hs0>20000000000ull){n_hsfail++;fatal_close(q,0);hspending--;if(hsmode&&running){restart(q);hspending++;}}}
  else if(q->state==S_WAIT&&t>q->tdead){if(++q->retr>4||o_non){n_timeout++;onresp(q,0);}else{n_retr++;q->tdead=t+(2000000000ull<<q->retr);xmit(q,q->req,q->reqlen);}}}}}
static uint64_t rnd=88172645463325252ull;
int main(int c,char**v){static struct option lo[]={{"host",1,0,'h'},{"port",1,0,'p'},{"mode",1,0,'m'},{"proto",1,0,'P'},{"sessions",1,0,'n'},{"id-format",1,0,'i'},{"id-start",1,0,1},{"id-count",1,0,2},{"psk",1,0,'k'},{"psk-hex",1,0,3},{"auth",1,0,'a'},{"cipher",1,0,'C'},{"cert",1,0,4},{"key",1,0,5},{"ca",1,0,6},{"path",1,0,'u'},{"query",1,0,7},{"method",1,0,'M'},{"payload",1,0,'b'},{"cid",1,0,8},{"duration",1,0,'d'},{"warmup",1,0,'w'},{"pid",1,0,9},{"hs-req",0,0,10},{"rebind",1,0,11},{"hs-parallel",1,0,12},{"hold",1,0,13},{"name",1,0,14},{"non",0,0,15},{"src-spread",1,0,16},{"psk-file",1,0,17},{"verbose",0,0,'v'},{0}};
 int o;while((o=getopt_long(c,v,"h:p:m:P:n:i:k:a:C:u:M:b:d:w:v",lo,0))!=-1)switch(o){case'h':o_host=optarg;break;case'p':o_port=atoi(optarg);break;case'm':o_mode=optarg;break;case'P':o_proto=optarg;break;case'n':o_sessions=atoi(optarg);break;case'i':o_idfmt=optarg;break;case 1:o_idstart=atoi(optarg);break;case 2:o_idcount=atoi(optarg);break;case'k':o_psk=optarg;break;case 3:o_psk=optarg;o_pskhex=1;break;case'a':o_auth=optarg;break;case'C':o_cipher=optarg;break;case 4:o_cert=optarg;break;case 5:o_key=optarg;break;case 6:o_ca=optarg;break;case'u':o_path=optarg;break;case 7:o_query=optarg;break;case'M':o_method=optarg;break;case'b':o_payload=atoi(optarg);break;case 8:o_cid=atoi(optarg);break;case'd':o_dur=atof(optarg);break;case'w':o_warm=atof(optarg);break;case 9:o_pid=atoi(optarg);break;case 10:o_hsreq=1;break;case 11:o_rebind=atoi(optarg);break;case 12:o_hspar=atoi(optarg);break;case 13:o_hold=atof(optarg);break;case 14:o_name=optarg;break;case 15:o_non=1;break;case 16:o_spread=atoi(optarg);break;case 17:o_psk=file_text(optarg);break;case'v':o_verbose=1;break;default:exit(2);}
 if(strcmp(o_host,"127.0.0.1")&&strncmp(o_host,"127.",4))die("loopback only");
 if(o_pskhex){psklen=strlen(o_psk)/2;for(int i=0;i<psklen;i++)sscanf(o_psk+2*i,"%2hhx",&pskbuf[i]);}else{psklen=strlen(o_psk);memcpy(pskbuf,o_psk,psklen);}
#ifdef USE_OPENSSL
 if(o_cid>=0)die("this build has no CID; use dtlsload-mbed");
#endif
 struct rlimit rl={1<<20,1<<20};if(setrlimit(RLIMIT_NOFILE,&rl)){getrlimit(RLIMIT_NOFILE,&rl);rl.rlim_cur=rl.rlim_max;setrlimit(RLIMIT_NOFILE,&rl);}
 peer.sin_family=AF_INET;peer.sin_port=htons(o_port);inet_pton(AF_INET,o_host,&peer.sin_addr);
 srand(now_ns());ep=epoll_create1(0);S=calloc(o_sessions,sizeof*S);for(int i=0;i<o_sessions;i++)S[i].fd=-1,S[i].state=S_NEW;
 if(usetls())tls_global();hsmode=!strcmp(o_mode,"hs");idlemode=!strcmp(o_mode,"idle");
 long rss0=o_pid?rss_of(o_pid):0;double c00=o_pid?cpu_of(o_pid):0;uint64_t T0=now_ns();
 if(hsmode){for(int i=0;i<o_sessions;i++){S[i].idx=started++;startsess(&S[i]);hspending++;if(tls_hs(&S[i])==1)onready(&S[i]);}
 }else{ /* open sessions, o_hspar at a time */
  int nx=0;while(ready+n_hsfail<(uint64_t)o_sessions){while(nx<o_sessions&&hspending<o_hspar){sess*q=&S[nx];q->idx=started++;startsess(q);nx++;if(q->state==S_HS){hspending++;if(tls_hs(q)==1){hspending--;n_hs++;onready(q);}}else ready++;}poll_once(20);if(now_ns()-T0>240e9)break;}}
 double tconn=(now_ns()-T0)/1e9;double c01=o_pid?cpu_of(o_pid):0;uint64_t hs_setup=n_hs;long rss1=o_pid?rss_of(o_pid):0;
 if(idlemode){uint64_t e=now_ns()+o_hold*1e9;int nx=0; /* one request per session so that the server builds its CoAP state too */
  for(;nx<o_sessions;nx++){if(S[nx].state==S_READY){measuring=1;sendreq(&S[nx]);}if(nx%8==0)poll_once(0);}while(now_ns()<e)poll_once(50);
  long rss2=o_pid?rss_of(o_pid):0;
  printf("{\"name\":\"%s\",\"mode\":\"idle\",\"sessions\":%d,\"hs_ok\":%lu,\"hs_fail\":%lu,\"connect_s\":%.3f,\"hs_per_s\":%.1f,\"srv_cpu_us_per_hs\":%.1f,\"resp_ok\":%lu,\"resp_err\":%lu,\"rss0_kib\":%ld,\"rss_conn_kib\":%ld,\"rss_after_kib\":%ld,\"kib_per_session\":%.2f,\"kib_per_session_after_req\":%.2f}\n",o_name,o_sessions,n_hs,n_hsfail,tconn,n_hs/tconn,n_hs?(c01-c00)*1e6/n_hs:0,n_ok,n_err,rss0,rss1,rss2,(rss1-rss0)/(double)(n_hs?n_hs:1),(rss2-rss0)/(double)(n_hs?n_hs:1));
  for(int i=0;i<o_sessions;i++)if(S[i].state!=S_DEAD)fatal_close(&S[i],1);return 0;}
 if(!hsmode)for(int i=0;i<o_sessions;i++){if(S[i].state==S_READY)sendreq(&S[i]);if(i%16==0)poll_once(0);}
 uint64_t tw=now_ns()+o_warm*1e9;while(now_ns()<tw)poll_once(20);
 uint64_t h0=n_hs,f0=n_hsfail,r0=n_retr;measuring=1;double sc0=o_pid?cpu_of(o_pid):0,mc0=selfcpu();uint64_t t1=now_ns(),te=t1+o_dur*1e9;
 while(now_ns()<te)poll_once(20);
 uint64_t t2=now_ns();double sc1=o_pid?cpu_of(o_pid):0,mc1=selfcpu();measuring=0;running=0;double dt=(t2-t1)/1e9;uint64_t ops=hsmode?n_hs-h0:n_ok;
 printf("{\"name\":\"%s\",\"mode\":\"%s\",\"proto\":\"%s\",\"auth\":\"%s\",\"sessions\":%d,\"cid\":%d,\"cid_neg\":%lu,\"hs_setup\":%lu,\"setup_s\":%.2f,\"setup_srv_cpu_us_per_hs\":%.1f,\"secs\":%.2f,\"ops\":%lu,\"ops_per_s\":%.1f,\"srv_cpu_us_per_op\":%.2f,\"srv_cpu_util\":%.3f,\"cli_cpu_us_per_op\":%.2f,\"err\":%lu,\"timeouts\":%lu,\"retrans\":%lu,\"hs_fail\":%lu,\"rebinds\":%lu,\"p50_ms\":%.3f,\"p99_ms\":%.3f}\n",
  o_name,o_mode,o_proto,usetls()?o_auth:"-",o_sessions,o_cid,n_cidneg,hs_setup,tconn,hs_setup?(c01-c00)*1e6/hs_setup:0,dt,ops,ops/dt,ops?(sc1-sc0)*1e6/ops:0,(sc1-sc0)/dt,ops?(mc1-mc0)*1e6/ops:0,n_err,n_timeout,n_retr-r0,n_hsfail-f0,n_rebind,pct(.5),pct(.99));
 for(int i=0;i<o_sessions;i++)if(S[i].fd>=0)fatal_close(&S[i],S[i].state!=S_HS);(void)rnd;return 0;}
